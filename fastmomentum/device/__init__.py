"""An optimiser's updates in device memory; :mod:`fastmomentum.backends.cuda` has the kernels."""

"""The NumPy backend: the reference that every other backend equals to the bit."""

"""Compare the speed of fastmomentum with other implementations; the contenders alternate within one process."""

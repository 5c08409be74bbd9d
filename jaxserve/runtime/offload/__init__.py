"""K/V blocks on their way between the device, host memory and the disk."""

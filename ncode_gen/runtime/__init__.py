"""What every room needs of the machine: device, memory, files, signals, random numbers, processes."""

"""The machine: devices, memory, processes, signals, seeds and files."""

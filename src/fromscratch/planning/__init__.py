"""What training takes on this machine, measured: speed, memory, the best micro-batch."""

"""What all parts of the package use: the model interface, names, files, estimates, threads."""

"""Plans of training runs: the step, compiled for devices that are not present, with its memory, time and collectives."""

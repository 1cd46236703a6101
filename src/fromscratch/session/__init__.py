"""From a run file to a run: plan, placement on the machine, set-up, resume, disk, samples."""

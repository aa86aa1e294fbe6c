"""What survives a crash: files, lock, journal, run record, spilled values. No torch, no pyarrow."""

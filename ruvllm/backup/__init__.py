"""Backup and restore: one folder with everything that cannot be made anew, each file under its hash."""

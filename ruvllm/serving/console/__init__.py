"""The console: a few static files, and the running state that one of their pages shows."""

"""The command line: main.py has the app, each command a file."""

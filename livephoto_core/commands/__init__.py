"""What the command line's subcommands do; cli.py parses their arguments."""

"""The commands of the command line: options in, a configuration, an exit status out."""

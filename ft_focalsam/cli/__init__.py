"""What a command line is read into."""

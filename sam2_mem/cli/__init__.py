"""What the command line tools do, behind their argument parsing."""

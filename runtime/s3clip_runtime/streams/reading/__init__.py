"""Where frames come from: addresses, one child process per camera, files and folders."""

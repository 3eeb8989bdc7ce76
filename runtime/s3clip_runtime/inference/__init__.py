"""What inference is: sizes, preprocessing, clips, ranking, the bundle and its sessions."""

"""s3clip on the edge: sources, tracklets, clips, embeddings, events. Never imports torch."""

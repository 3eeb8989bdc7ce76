"""S3-CLIP in PyTorch: models, losses, data, training, evaluation."""

"""Measuring a trained model: embeddings, rankings, figures, the page, comparisons, the challenge's file."""

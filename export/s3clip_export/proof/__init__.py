"""The proof that graphs compute what PyTorch computes, and its report."""

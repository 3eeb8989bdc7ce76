"""The bundled demo: a tiny bundle trained on the synthetic world, and two short videos. Data only."""

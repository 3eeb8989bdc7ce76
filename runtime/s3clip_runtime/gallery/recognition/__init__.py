"""Who was seen by a run: decisions over cameras and boxes, unknown people, growth, travel times."""

"""The parts that Ray Tune calls: searcher, schedulers, callbacks and trainables."""

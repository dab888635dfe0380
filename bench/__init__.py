"""The benchmark suite: ``python -m bench --help`` (speed, first call, overhead) and ``bench.demo``."""

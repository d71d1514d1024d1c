"""Side-by-side timings; `make bench` runs them, `README.md` says what the keys of the results
mean.
"""

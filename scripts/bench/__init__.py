"""The benchmark: python -m scripts.bench"""

"""The soak test: python -m scripts.soak"""

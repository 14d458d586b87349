"""The load test: python -m scripts.loadtest URL"""

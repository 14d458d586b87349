"""Writing and training models.

make_model          a command: models with random weights, to measure speed
train_demo_model    a command: trains the bundled model
llama_gguf          the file format
shapes, vocabulary, weights     random models
stories             reads texts to train on
network             the model that is trained, in PyTorch
"""

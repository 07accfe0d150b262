"""The scripts that train and evaluate spriteworld's weights. Of them, only judge_demo.py is used by a command.

regenerate.py       all of it again, step by step    trainer.py     worker processes, optimizer step, checkpoints
dataset.py          drawn images with their labels   evaluate.py    the measurements of the model card
train_vae.py        the autoencoder                  model_card.py  the model card
train_diffusion.py  UNet and text encoder            judge_demo.py  the demo's catalog against the truth
train_scorer.py     the scorer, a CLIPModel          showcase.py    the README's picture
train_judge.py      the classifier that evaluates
"""

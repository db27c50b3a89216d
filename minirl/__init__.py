"""minirl: reinforcement learning for language models, small enough to read and right enough to trust.

Nothing is imported here, so that `import minirl` costs nothing. Import the room you need:

    from minirl.losses.policy import ppo_clip_loss
    from minirl.model import Transformer, TransformerConfig
"""

__version__ = "0.1.0"
REPOSITORY = "minirl-course/minirl"  # the one place that says where the project lives: Colab links and clone commands

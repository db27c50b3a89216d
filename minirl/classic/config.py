"""PPOConfig: TRL's names for the settings of the classic loop, and what becomes of each here."""

from dataclasses import dataclass, field, fields

from minirl.classic.notes import ignored
from minirl.types import check_knob

TRACKING = ("exp_name", "task_name", "model_name", "query_dataset", "reward_model", "steps")  # read by programs alone


@dataclass
class PPOConfig:
    """TRL's names and defaults. `mini_batch_size` responses are in memory at a time; the gradient steps are taken on
    mini_batch_size * gradient_accumulation_steps of them, and are those of one batch of that size."""

    model_name: str | None = None
    learning_rate: float = 1.41e-5
    batch_size: int = 128  # responses a step; fewer are taken too
    mini_batch_size: int = 128
    gradient_accumulation_steps: int = 1
    ppo_epochs: int = 4
    steps: int = 20000
    seed: int = 0
    adap_kl_ctrl: bool = True
    init_kl_coef: float = 0.2
    target: float = 6.0  # nats of KL a response, which the adaptive coefficient moves towards
    horizon: float = 10000.0
    kl_penalty: str = "kl"
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    max_grad_norm: float | None = None
    score_clip: float | None = None
    whiten_rewards: bool = False
    use_score_scaling: bool = False
    use_score_norm: bool = False
    is_encoder_decoder: bool | None = None
    forward_batch_size: int | None = None  # an older name of mini_batch_size
    # without effect here; named once where they are set
    early_stopping: bool = False
    target_kl: float = 1.0
    ratio_threshold: float = 10.0
    log_with: str | None = None
    optimize_cuda_cache: bool | None = None
    optimize_device_cache: bool = False
    gradient_checkpointing: bool = False
    remove_unused_columns: bool = True
    compare_steps: int = 1
    dataset_num_proc: int | None = None
    tracker_project_name: str = "trl"
    tracker_kwargs: dict = field(default_factory=dict)
    accelerator_kwargs: dict = field(default_factory=dict)
    project_kwargs: dict = field(default_factory=dict)
    push_to_hub_if_best_kwargs: dict = field(default_factory=dict)
    exp_name: str | None = None
    task_name: str | None = None
    query_dataset: str | None = None
    reward_model: str | None = None

    def __post_init__(self):
        if self.forward_batch_size is not None:
            self.mini_batch_size = self.forward_batch_size
        for name in ("batch_size", "mini_batch_size", "gradient_accumulation_steps", "ppo_epochs"):
            check_knob(name, getattr(self, name), 1)
        for name in ("learning_rate", "target", "cliprange", "cliprange_value"):
            check_knob(name, getattr(self, name), 0, open_low=True)
        check_knob("horizon", self.horizon, 1)
        check_knob("init_kl_coef", self.init_kl_coef, 0)
        check_knob("vf_coef", self.vf_coef, 0)
        for name in ("max_grad_norm", "score_clip"):
            if getattr(self, name) is not None:
                check_knob(name, getattr(self, name), 0, open_low=True)
        if self.kl_penalty != "kl":
            raise ValueError(
                f"kl_penalty: wanted 'kl', got {self.kl_penalty!r}. As part of the reward only log pi - log pi_ref has "
                f"the gradient of the KL; its square, its absolute value and the full sum lead elsewhere"
            )
        for name, why in (
            ("whiten_rewards", "it would rescale the KL penalty with the score, at every step by another number"),
            ("use_score_scaling", "divide the scores yourself, by a number that stays"),
            ("use_score_norm", "subtract and divide yourself, by numbers that stay"),
            ("is_encoder_decoder", "models here are decoders alone"),
        ):
            if getattr(self, name):
                raise ValueError(f"{name}: wanted False; {why}")
        idle = [f.name for f in fields(self)]
        idle = idle[idle.index("early_stopping") :]
        defaults = PPOConfig.__dataclass_fields__
        ignored(
            {n: True for n in idle if n not in TRACKING and getattr(self, n) not in (defaults[n].default, None, {})}
        )

    def to_dict(self) -> dict:
        return dict(vars(self))

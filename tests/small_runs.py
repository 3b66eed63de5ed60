"""A run of a few seconds: what the tests of runs and of the command line start from."""

SMALL = {
    "horizon": 3,
    "steps": 12,
    "eval_every": 5,
    "checkpoint_every": 1,
    "data.max_train": 64,
    "data.max_validation": 16,
    "data.max_test": 16,
    "finetune.batch_size": 8,
    "training.gradient_steps": 3,
    "training.warm_up_steps": 3,
    "training.teacher.plans": 16,
    "policy.diffusion.inference_steps": 3,
    "policy.diffusion.batch_size": 8,
    "policy.hidden": 16,
    "policy.actor_hidden": 16,
}

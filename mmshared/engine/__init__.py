"""From a config to a model: configs by name, checkpoints, data, models without a runner, our Runner."""

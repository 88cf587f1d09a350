custom_hooks = [dict(type='OrthogonalityLossHook', loss_weight=10.0)]

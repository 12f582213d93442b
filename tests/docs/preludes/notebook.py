import fxsurgery as _fxsurgery

result = _fxsurgery.optimize(
    my_model,  # noqa: F821
    train_data=train_data,  # noqa: F821
    val_data=val_data,  # noqa: F821
    config=_fxsurgery.Dnal(fewest_steps=5, most_steps=5),
    verbose=False,
)

"""Which argument a user meant by a name that does not exist: the terms of other tools first, then similar spellings.

`SYNONYMS` is the one table of terms from PyTorch, Torch-Pruning, ModelOpt, timm, Hugging Face and Ultralytics. A
meaning is suggested only where the call at hand accepts it.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from fxsurgery.argument_names import keyword

_TERMS: tuple[tuple[str, str], ...] = (
    ("learning_rate=", "lr rate lr_rate lr0 base_lr init_lr initial_lr finetune_lr learningrate max_lr"),
    ("lr=", "learning_rate rate base_lr lr0"),
    ("finetune_epochs=", "epochs epoch num_epochs n_epochs max_epochs num_train_epochs ft_epochs train_epochs"),
    ("epochs=", "max_epochs num_epochs budget_epochs"),
    ("spend=Spend(epochs=1000)", "max_trials trials n_trials generations search_epochs"),
    ("seconds=", "time timeout max_time time_limit"),
    ("most_steps=", "steps max_steps num_steps total_steps iterations max_iter iters n_iter"),
    ("steps=", "max_steps num_steps total_steps iterations max_iter iters epochs"),
    ("macs=", "flops flop gflops mflops mac gmacs mmacs ops computations complexity"),
    ("params=", "parameters num_params n_params nparams size model_size weights memory"),
    ("latency_ms=", "latency ms speed runtime delay"),
    (
        "budget=Budget(macs=0.5)",
        "flops flop gflops macs mac pruning_ratio prune_ratio pruning_rate ch_sparsity channel_sparsity sparsity",
    ),
    (
        "budget=Budget(macs=0.5)",
        "target_sparsity amount ratio target_ratio compression compression_ratio constraints target_flops keep_ratio",
    ),
    ("budget=Budget(params=0.5)", "params parameters num_params model_size size"),
    ("budget=Budget(latency_ms=0.5)", "latency_ms latency max_latency speedup speed_up"),
    ("macs=0.5", "pruning_ratio ch_sparsity sparsity amount ratio compression fraction speedup speed_up"),
    ("ratios=", "pruning_ratio_dict layer_ratios per_layer_ratio ratio_dict ch_sparsity_dict"),
    (
        "keep=",
        "ignored_layers ignore ignored ignore_layers exclude exclude_layers excluded skip skip_layers freeze frozen",
    ),
    ("keep=", "unpruned unwrapped_parameters keep_layers"),
    ("leaf_modules=", "leaf_module leaves opaque_modules customized_pruners"),
    (
        "example_inputs=",
        "example_input inputs input sample_input sample_inputs dummy_input dummy_inputs dummy example_args args",
    ),
    ("example_inputs=", "input_example inputs_example forward_args x"),
    ("example_kwargs=", "kwargs forward_kwargs input_kwargs example_inputs_kwargs"),
    ("example_inputs=", "input_shape input_size imgsz img_size example_shape input_data"),
    (
        "train_data=",
        "data dataloader data_loader loader train_loader trainloader train_dataloader train_dataset trainset dataset",
    ),
    ("train_data=", "train train_dataloaders data_config calib_loader calibration_data training_data"),
    (
        "val_data=",
        "val_loader valloader val_dataloader val_dataset valset val valid_data valid_loader validation_data eval_data",
    ),
    ("val_data=", "eval_loader eval_dataset validation validation_split"),
    ("test_data=", "test_loader testloader test_dataloader test_dataset testset test"),
    ("loss=", "criterion loss_fn loss_func loss_function objective collect_func train_loss_fn"),
    ("metric=", "metrics compute_metrics score score_func eval_fn evaluate eval_metric monitor scoring"),
    ("select=", "monitor metric_for_best_model main_metric"),
    ("higher_is_better=", "greater_is_better maximize mode"),
    (
        "batch_size=",
        "batch bs batchsize train_batch_size per_device_train_batch_size per_device_batch_size samples_per_gpu",
    ),
    ("weight_decay=", "wd decay l2"),
    ("optimizer=", "opt optim optimizer_fn optimizer_cls optimizers"),
    ("schedule=", "scheduler lr_scheduler lr_schedule sched lr_scheduler_type"),
    ("gradient_clip=", "clip grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip_val clip_norm"),
    ("accumulate=", "accum accumulation_steps gradient_accumulation_steps accumulate_grad_batches grad_accum"),
    ("mixed_precision=", "amp fp16 bf16 half precision dtype torch_dtype autocast"),
    ("memory_format=", "channels_last layout"),
    ("teacher=", "teacher_model distill distillation kd"),
    ("distillation_weight=", "alpha kd_weight distill_weight"),
    ("distillation_temperature=", "temperature kd_temperature distill_temperature"),
    ("finetune=", "train_fn training_loop finetune_fn trainer training_func"),
    ("callbacks=", "callback hooks on_epoch_end"),
    ("loggers=", "logger log log_with wandb tensorboard mlflow report_to tracker trackers"),
    ("early_stopping=", "patience early_stopping_patience early_stop"),
    ("warmup=", "warmup_epochs warmup_steps warmup_ratio lr_warmup_epochs"),
    ("seed=", "random_state random_seed manual_seed rng"),
    ("device=", "gpu cuda devices map_location accelerator use_cuda"),
    ("executor=", "backend ray distributed processes"),
    ("workers=", "num_workers n_jobs jobs nproc n_workers"),
    ("method=", "algorithm algo pruner pruner_cls strategy searcher search"),
    ("config=", "settings cfg hparams hyperparameters options"),
    ("align=", "round_to divisor multiple channel_divisor width_multiple multiple_of"),
    ("rounds=", "iterative_steps iterative_pruning_steps pruning_steps num_rounds"),
    ("rounds=", "round runs repeat repeats number n iterations iters num_iters loops count"),
    ("warmup=", "warm_up warmups warmup_runs n_warmup"),
    ("threads=", "num_threads n_threads intra_op_num_threads cores"),
    ("scope=", "global_pruning"),
    ("order=", "p norm p_norm"),
    ("importance=", "criterion imp ranking pruning_criterion"),
    ("trained=", "pretrained is_trained"),
    (
        "run_dir=",
        "output_dir out_dir outdir save_dir log_dir work_dir checkpoint_dir project default_root_dir path out",
    ),
    ("resume=", "resume_from_checkpoint ckpt_path checkpoint continue_run"),
    ("verbose=", "quiet silent progress progress_bar verbosity disable_tqdm"),
    ("path=", "file filename filepath file_name f output output_path save_path out folder onnx_path"),
    ("folder=", "path file directory dir dirname output_dir save_directory pretrained_model_name_or_path"),
    ("opset=", "opset_version opset_ver target_opset onnx_opset"),
    ("dynamic_batch=", "dynamic dynamic_axes dynamic_shapes dynamic_dims"),
    ("exporter=", "dynamo backend engine"),
    ("check=", "verify validate do_validation checker parity"),
    ("transforms=(ToFloat16(),)", "half fp16 float16 optimize simplify quantize int8"),
    ("title=", "name heading header"),
    ("latency=", "benchmark timing timings"),
    ("original=", "orig model base_model source"),
)
"""Arguments, and other tools' terms for them. A term may be in several rows: the first argument that fits counts."""


def _by_term() -> dict[str, tuple[str, ...]]:
    found = dict[str, tuple[str, ...]]()
    for meaning, terms in _TERMS:
        for term in terms.split():
            found[term] = (*found.get(term, ()), meaning)
    return found


SYNONYMS = _by_term()
"""Term of another tool -> arguments to pass instead, likeliest first: `learning_rate=`, `budget=Budget(macs=0.5)`."""


def meant_by(name: str, known: Sequence[str]) -> str | None:
    """Return what to pass in place of a name that does not exist; `None` if nothing is similar.

    Args:
        name: the name that was given.
        known: the names that exist.

    Example:
        >>> meant_by("lr", ["learning_rate", "momentum"]), meant_by("momentun", ["learning_rate", "momentum"])
        ('learning_rate=', 'momentum=')
        >>> meant_by("flops", ["budget", "seed"])
        'budget=Budget(macs=0.5)'
    """
    for meaning in SYNONYMS.get(name.lower(), ()):
        argument, _, value = meaning.partition("=")
        if argument in known and argument != name:
            return meaning if value else f"{argument}="
    near = get_close_matches(name.lower(), known, 1, 0.5)
    return f"{near[0]}=" if near else None


def hint(name: str, known: Iterable[str]) -> str:
    """Return the second half of a message on a name that does not exist: what was meant, else all that exist.

    Example:
        >>> hint("epochs", ["finetune_epochs"]), hint("color", ["path", "title"])
        ('did you mean finetune_epochs=?', 'it takes: path, title')
    """
    names = list(known)
    meant = meant_by(name, names)
    if meant is None:
        return f"it takes: {', '.join(names)}" if names else "it takes none"
    argument, _, value = meant.partition("=")
    return f"did you mean {meant if value else keyword(argument)}?"

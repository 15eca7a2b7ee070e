"""Other tools' names of a spec's options: PyTorch, Lightning, transformers, litgpt, nanoGPT, timm,
Keras, fairseq, JoeyNMT.

Keys are in lower case without `_` and `-`. Targets are paths, or the ends of paths where the
beginning depends on the model: `mixer.num_heads` is that of any block. Of the targets, a message
names those that exist in the given spec.
"""

from __future__ import annotations

import difflib

from bigmodel_cli.old_names import former_names

_TARGETS = {
    "train.steps": (
        "max_steps max_iters iterations iters num_iterations num_steps total_steps training_steps"
        " max_update updates num_training_steps max_train_steps n_steps"
    ),
    "train.epochs": "epoch num_epochs max_epochs n_epochs num_train_epochs nb_epochs",
    "train.minutes": "max_time max_minutes time_limit time_budget max_duration train_time",
    "train.batch_size": (
        "batch bs batchsize train_batch_size per_device_train_batch_size global_batch_size"
        " mini_batch_size"
    ),
    "train.batch_tokens": "max_tokens_per_batch tokens_per_batch",
    "train.checkpointing": (
        "gradient_checkpointing activation_checkpointing checkpoint_activations remat recompute"
    ),
    "train.loss_chunk": "chunked_loss chunked_cross_entropy use_liger_kernel cut_cross_entropy",
    "train.micro_batch_size": (
        "gradient_accumulation gradient_accumulation_steps accumulate_grad_batches grad_accum "
        "accumulation_steps update_freq grad_accumulation batch_multiplier"
    ),
    "train.optimizer.type": "opt optim optimizer_name optimizer_type",
    "train.optimizer.lr": "learning_rate lr0 max_lr base_lr peak_lr initial_lr init_lr",
    "train.optimizer.weight_decay": "wd l2 weightdecay decay_weights",
    "train.optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2 adam_betas beta_1 beta_2",
    "train.optimizer.eps": "adam_eps adam_epsilon epsilon opt_eps",
    "train.optimizer.momentum": "sgd_momentum",
    "train.lr_scale": "head_scale head_lr lr_mult lr_multiplier head_lr_factor param_groups",
    "train.schedule.type": (
        "scheduler lr_scheduler lr_schedule lr_scheduler_type sched decay_lr lr_decay_style"
    ),
    "train.schedule.warmup": (
        "warmup_steps num_warmup_steps lr_warmup_steps warmup_iters lr_warmup_iters warmup_updates "
        "learning_rate_warmup warmup_ratio warmup_epochs"
    ),
    "train.schedule.final": "min_lr lr_min learning_rate_min final_lr end_lr eta_min min_lr_ratio",
    "train.max_grad_norm": (
        "grad_clip clip_grad gradient_clip_val clip_grad_norm clipnorm clip_norm gradient_clip "
        "gradient_clipping max_norm global_clipnorm"
    ),
    "train.ema": "ema_decay model_ema model_ema_decay moving_average",
    "train.precision": "fp16 bf16 amp mixed_precision half dtype torch_dtype fp32",
    "train.compile": "torch_compile compile_model jit",
    "train.seed": "random_seed manual_seed random_state rng_seed",
    "train.log_every": (
        "log_interval logging_steps log_every_n_steps print_freq logging_freq log_freq"
        " logging_interval"
    ),
    "train.validate_every": (
        "eval_interval eval_steps val_check_interval eval_every validation_freq validation_steps "
        "val_interval eval_frequency validate_interval_updates"
    ),
    "train.validate_epochs": "check_val_every_n_epoch eval_epochs validate_interval",
    "train.validation_batch": (
        "eval_batch_size val_batch_size per_device_eval_batch_size validation_batch_size"
        " test_batch_size"
    ),
    "train.checkpoint_every": (
        "save_steps save_interval save_every checkpoint_interval save_freq checkpoint_freq"
        " ckpt_every save_interval_updates"
    ),
    "train.save_async": "async_save async_checkpoint async_mode checkpoint_async",
    "train.keep_last": (
        "save_total_limit keep_checkpoints max_checkpoints keep_last_n keep_last_epochs"
    ),
    "train.keep_best": "save_top_k keep_best_ckpts",
    "train.average_last": "average_checkpoints swa checkpoint_average",
    "train.patience": "early_stopping early_stop early_stopping_patience early_stopping_rounds",
    "train.trackers": (
        "log_dir tensorboard_dir report_to tensorboard_logdir tensorboard logger loggers wandb"
        " mlflow"
    ),
    "init.checkpoint": (
        "pretrained pretrained_model checkpoint_path from_pretrained init_from load_from "
        "model_name_or_path restore_file load_model"
    ),
    "init.freeze": "frozen freeze_layers trainable",
    "model.type": "arch architecture model_type network",
    "model.dim": (
        "d_model hidden_size n_embd n_embed embed_dim embedding_dim model_dim emb_dim"
        " embedding_size width hidden_dim num_hiddens encoder_embed_dim decoder_embed_dim"
    ),
    "model.max_len": (
        "max_position_embeddings n_positions max_positions n_ctx max_source_positions"
        " max_target_positions"
    ),
    "data.context": (
        "max_seq_len block_size context_length context_size context_window seq_len sequence_length "
        "max_seq_length max_length seq_length max_sequence_length bptt input_length"
    ),
    "model.vocab_size": "n_vocab vocab padded_vocab_size num_embeddings num_tokens",
    "tokenizer.vocab_size": "n_vocab vocab bpe_size num_merges",
    "model.tie_embeddings": (
        "tie_word_embeddings tie_weights tied weight_tying share_decoder_input_output_embed"
    ),
    "model.scale_embeddings": "embedding_multiplier embed_scale",
    "model.logit_scale": "logits_scaling lm_head_multiplier logits_multiplier",
    "model.share_embeddings": "tie_word_embeddings share_all_embeddings",
    "model.init_std": "initializer_range init_range",
    "model.layers": "conv_layers hidden_layers",
    "model.name": "model_name torchvision_model",
    "model.weights": "pretrained",
    "model.patch": "patch_size",
    "model.dropout": (
        "dropout_rate embd_pdrop hidden_dropout_prob emb_dropout embedding_dropout drop_rate"
        " p_dropout"
    ),
    "repeat": (
        "n_layer n_layers num_layers num_hidden_layers depth num_blocks n_blocks layers"
        " encoder_layers decoder_layers"
    ),
    "mixer.num_heads": (
        "n_head n_heads nhead heads num_attention_heads encoder_attention_heads"
        " decoder_attention_heads attention_heads"
    ),
    "mixer.kv_heads": "num_key_value_heads n_kv_heads n_query_groups num_kv_heads n_kv_head",
    "mixer.head_dim": "head_size d_head dim_head d_kv",
    "mixer.window": "sliding_window attention_window window_size",
    "mixer.dropout": (
        "attn_dropout attention_dropout attn_pdrop attention_probs_dropout_prob attn_drop"
    ),
    "mixer.position": (
        "pos_emb positional_encoding rope position_embedding_type pos_encoding rotary"
    ),
    "mixer.position.base": "rope_theta rotary_base rope_base theta",
    "mixer.position.scaling": "rope_scaling",
    "mixer.qk_norm": "qk_layernorm norm_qk use_qk_norm",
    "mixer.bias": "qkv_bias attention_bias query_bias key_bias value_bias proj_bias",
    "mixer.gate": "attn_output_gate gated_attention",
    "mixer.state": "d_state ssm_state_size state_size",
    "mixer.kernel": "d_conv conv_kernel",
    "ffn.hidden": (
        "ffn_dim d_ff dim_feedforward intermediate_size n_inner mlp_dim ffn_hidden_size mlp_ratio"
        " ff_size encoder_ffn_embed_dim decoder_ffn_embed_dim hidden_features ffn_embed_dim"
    ),
    "ffn.type": "activation hidden_act act activation_function act_fn nonlinearity",
    "ffn.dropout": "activation_dropout mlp_drop relu_dropout",
    "ffn.experts": "num_experts n_experts n_routed_experts num_local_experts",
    "ffn.top_k": "num_experts_per_tok experts_per_token moe_top_k",
    "ffn.groups": "n_group num_expert_groups",
    "ffn.top_groups": "topk_group",
    "ffn.shared": "n_shared_experts num_shared_experts",
    "ffn.shared_hidden": "shared_expert_intermediate_size shared_intermediate_size",
    "ffn.scale": "routed_scaling_factor",
    "ffn.normalize": "norm_topk_prob",
    "norm.type": "normalization norm_type norm_class norm_layer",
    "norm.eps": "layer_norm_eps rms_norm_eps norm_eps layer_norm_epsilon",
    "residual_scale": "residual_multiplier",
    "mixer.scale": "attention_multiplier query_pre_attn_scalar softmax_scale",
    "placement": "norm_first pre_norm normalize_before layer_norm_position",
    "drop_path": "drop_path_rate stochastic_depth layerdrop",
    "layer_scale": "layer_scale_init_value init_values layerscale",
    "data.type": "dataset dataset_name data_name",
    "data.files": (
        "root path paths data_path train_file train_data data_dir train_path train_files file"
        " filename corpus dataset_path"
    ),
    "data.root": (
        "path data_path data_dir root_dir dataroot folder directory dir train_dir data_folder"
        " image_folder"
    ),
    "data.train": (
        "path paths data_path train_file train_data train_path train_files file files filename csv"
        " dataset_path"
    ),
    "data.val": (
        "validation_file val_file valid_data val_data validation_data dev dev_file eval_file valid"
        " val_path val_files"
    ),
    "data.test": "test_file test_data test_path test_files",
    "data.val_files": (
        "validation_file val_file valid_data val_data validation_data dev dev_file eval_file valid"
        " val val_path"
    ),
    "data.test_files": "test_file test_data test test_path",
    "data.source": "src src_lang source_lang source_file",
    "data.target": "tgt trg tgt_lang target_lang target_file",
    "data.val_fraction": (
        "val_split validation_split test_size valid_fraction val_size validation_fraction"
        " valid_size val_ratio"
    ),
    "data.tokenizer": "tokenizer_name tokenizer_type tokenizer_path level",
    "data.size": "image_size img_size input_size resize crop_size resolution",
    "data.channels": "in_channels num_channels in_chans input_channels color_mode",
    "data.augment": (
        "augmentation augmentations transforms transform data_augmentation auto_augment aa"
    ),
    "data.normalize": "normalization mean std normalise",
    "data.workers": "num_workers n_workers dataloader_num_workers num_proc data_workers",
    "data.download": "download_data",
    "data.label": "label_column labels_column target_column label_col",
    "data.label_column": "label_key labels_column",
    "data.text": "text_column text_col text_field sentence_column",
    "data.rate": "sample_rate sampling_rate sr",
    "data.mels": "n_mels num_mel_bins mel_bins feature_size",
    "data.isolate": "document_mask pack_mask intra_document_masking",
    "task.label_smoothing": "label_smoothing_factor smoothing",
    "task.mask_prob": "mlm_probability masking_probability mask_probability",
    "task.mask_ratio": "masking_ratio",
    "task.class_weights": "class_weight weights_per_class pos_weight",
    "task.metric": "metric_for_best_model monitor eval_metric best_metric early_stopping_metric",
    "task.metrics": "metrics eval_metrics",
    "task.beams": "num_beams beam beam_size beam_width",
    "task.length_penalty": "lenpen beam_alpha alpha",
    "task.max_tokens": "max_new_tokens max_target_length generation_max_length max_output_length",
    "task.sample_tokens": "max_new_tokens sample_length",
    "task.sample_temperature": "temperature",
    "channels": "filters out_channels",
    "kernel": "kernel_size ksize",
    "units": "out_features neurons",
}

_REMARKS = {
    "fp16": "as precision: fp16",
    "bf16": "as precision: bf16",
    "fp32": "as precision: fp32",
    "gradient_accumulation gradient_accumulation_steps accumulate_grad_batches grad_accum"
    " accumulation_steps update_freq grad_accumulation batch_multiplier": (
        "batch_size is that of a whole step, and micro_batch_size what passes at once: batch_size /"
        " accumulation"
    ),
    "min_lr lr_min learning_rate_min final_lr end_lr eta_min": "as a fraction of the peak",
    "warmup_ratio warmup_epochs": "in steps",
    "mlp_ratio": "in channels, not as a ratio",
    "early_stopping early_stop": "a number of validations",
    "shuffle": "the training data is shuffled in every epoch; leave it out",
    "drop_last": "an epoch's last samples are never dropped; leave it out",
    "num_classes num_labels n_classes nb_classes n_labels classes output_dim out_dim num_outputs": (
        "the number of classes is that of the data; leave it out"
    ),
    "vocab_size n_vocab vocab padded_vocab_size num_embeddings num_tokens"
    " src_vocab_size tgt_vocab_size": "left out, it is the tokenizer's",
    "in_channels num_channels in_chans input_channels image_size img_size input_size": (
        "left out, the data's images decide"
    ),
    "input_shape input_dim in_features in_dim n_features": (
        "the input's shape is that of the data; leave it out"
    ),
    "loss loss_fn criterion loss_function objective": "task.type decides the loss",
    "device devices gpus gpu accelerator num_gpus cuda no_cuda": (
        "give --device on the command line"
    ),
    "output_dir out out_dir save_dir run_dir checkpoint_dir model_dir exp_name experiment"
    " run_name": "give --out on the command line",
    "resume resume_from resume_from_checkpoint auto_resume": "give --resume on the command line",
    "plugin plugins": "give --plugin on the command line",
    "strategy distributed ddp fsdp deepspeed world_size": "a run computes on one device",
}


def _normal(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")


def _by_word(table: dict[str, str]) -> dict[str, list[str]]:
    """From {target: words} to {word: targets}."""
    by_word: dict[str, list[str]] = {}
    for target, words in table.items():
        for word in words.split():
            by_word.setdefault(_normal(word), []).append(target)
    return by_word


SYNONYMS = _by_word(_TARGETS)
for _path, _name in former_names().items():
    SYNONYMS.setdefault(_normal(_name), []).append(_path)
REMARKS = _by_word({remark: words for words, remark in _REMARKS.items()})


def targets(word: str) -> list[str]:
    """The paths, or ends of paths, of the options that the word may stand for."""
    return SYNONYMS.get(_normal(word), [])


def closest(word: str) -> str:
    """Other tools' word that is most similar to a misspelt one, or ''."""
    return next(iter(difflib.get_close_matches(_normal(word), [*SYNONYMS], n=1, cutoff=0.85)), "")


def remark(word: str) -> str:
    """A remark on the word, or ''."""
    return "; ".join(REMARKS.get(_normal(word), []))

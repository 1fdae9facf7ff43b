"""All findings there are, each by a function that yields it."""

from regplug.doctor import decay_checks, dropout_checks, penalty_checks

__all__ = ["CHECKS"]

CHECKS = (
    penalty_checks.detached_penalty,
    penalty_checks.penalty_once,
    decay_checks.decayed_twice,
    penalty_checks.scaled,
    penalty_checks.shared_counted_twice,
    penalty_checks.norm_not_squared,
    penalty_checks.clipped_away,
    penalty_checks.penalty_dominates,
    decay_checks.lr_zero,
    dropout_checks.dropout_off,
    dropout_checks.dropout_in_eval,
    dropout_checks.dropout_without_effect,
    decay_checks.frozen_decay,
    decay_checks.decay_of_zero_gradient,
    decay_checks.decays_bias_or_norm,
    penalty_checks.penalizes_bias_or_norm,
    decay_checks.decays_embedding,
    decay_checks.adapter_decay,
    decay_checks.nothing_acts,
)

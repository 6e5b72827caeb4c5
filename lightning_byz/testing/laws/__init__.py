"""The laws, each one function that checks one case of one rule."""

from lightning_byz.testing.law import Law
from lightning_byz.testing.laws import (
    attacks,
    codes,
    collectives,
    compressors,
    estimators,
    layout,
    links,
    mixing,
    promises,
    purity,
    robustness,
    symmetry,
    weights,
    wires,
)

AGGREGATOR_LAWS: tuple[Law, ...] = (
    promises.class_data,
    promises.refusals,
    promises.no_weight,
    promises.no_coordinates,
    purity.types,
    purity.inputs,
    purity.randomness,
    purity.generators,
    purity.ownership,
    purity.modes,
    purity.memory_layout,
    promises.unused_generator,
    promises.coefficients,
    layout.slices,
    layout.no_reference,
    symmetry.agreement,
    symmetry.permutation,
    symmetry.translation,
    symmetry.scaling,
    weights.absence,
    weights.proportions,
    weights.repetition,
    weights.refused_weights,
    weights.slivers,
    robustness.breakdown,
    robustness.coalitions,
    robustness.magnitudes,
    robustness.faults,
    robustness.faulty_weight,
    robustness.too_many,
    robustness.choices,
    robustness.searching,
)
"""What an aggregator signs, cheap laws first."""

PREAGGREGATOR_LAWS: tuple[Law, ...] = (mixing.stack_out, mixing.own_rows, mixing.mixing)
"""What a pre-aggregator signs beside what it and the aggregator after it sign together."""

ATTACK_LAWS: tuple[Law, ...] = (
    attacks.attack_rows,
    attacks.attack_randomness,
    attacks.attack_batch,
    attacks.attack_weights,
    attacks.attack_slices,
)
"""What an attack signs."""

ESTIMATOR_LAWS: tuple[Law, ...] = (
    estimators.estimator_types,
    estimators.estimator_memory,
    estimators.estimator_inputs,
    estimators.estimator_purity,
    estimators.estimator_coordinates,
    estimators.estimator_growth,
    estimators.estimator_scaling,
    estimators.estimator_saving,
    estimators.estimator_finite,
    estimators.estimator_convergence,
)
"""What an estimator signs."""

COMPRESSOR_LAWS: tuple[Law, ...] = (
    compressors.compressor_constants,
    compressors.compressor_size,
    compressors.compressor_inputs,
    compressors.compressor_purity,
    compressors.compressor_slices,
    compressors.compressor_contraction,
    compressors.compressor_unbiased,
    compressors.compressor_totality,
)
"""What a compressor signs."""

LINK_LAWS: tuple[Law, ...] = (
    links.link_types,
    links.link_inputs,
    links.link_purity,
    links.link_mirrors,
    links.link_elementwise,
    links.link_finite,
    links.link_message,
)
"""What a link signs."""

CODE_LAWS: tuple[Law, ...] = (codes.code_parts, codes.code_purity, codes.code_slices, codes.code_recovery)
"""What a code signs."""

EXCHANGE_LAWS: tuple[Law, ...] = (
    wires.exchange_places,
    wires.exchange_slices,
    collectives.exchange_sums,
    collectives.exchange_broadcast,
    collectives.exchange_first,
    wires.exchange_partials,
    wires.exchange_rows,
    wires.exchange_facts,
    wires.exchange_whole,
    wires.exchange_apart,
    wires.exchange_traffic,
)
"""What an exchange signs, on every rank."""

__all__ = [
    "AGGREGATOR_LAWS",
    "ATTACK_LAWS",
    "CODE_LAWS",
    "COMPRESSOR_LAWS",
    "ESTIMATOR_LAWS",
    "EXCHANGE_LAWS",
    "LINK_LAWS",
    "PREAGGREGATOR_LAWS",
    "Law",
]

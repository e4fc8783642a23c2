"""Import paths and names of earlier versions: they keep working, with a FutureWarning that names the new one.

``MODULES`` maps modules that are gone to those that took their place; ``NAMES`` maps ``module:name`` of earlier versions
to where the name is now. Memory files name classes in the same way, so ``current`` serves them too.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

MODULES = {
    "sam2_mem.cli.measure": "sam2_mem.cli.evaluate_training",
    "sam2_mem.cli.network": "sam2_mem.cli.arguments",
    "sam2_mem.evaluation.compare": "sam2_mem.evaluation.comparison.runner",
    "sam2_mem.evaluation.compare_jobs": "sam2_mem.evaluation.comparison.jobs",
    "sam2_mem.evaluation.compare_page": "sam2_mem.evaluation.comparison.report",
    "sam2_mem.evaluation.compare_report": "sam2_mem.evaluation.comparison.report",
    "sam2_mem.evaluation.compare_statistics": "sam2_mem.evaluation.comparison.statistics",
    "sam2_mem.evaluation.compare_videos": "sam2_mem.evaluation.comparison.videos",
    "sam2_mem.evaluation.inspection.decipher": "sam2_mem.evaluation.inspection.memory_deciphering",
    "sam2_mem.evaluation.inspection.record": "sam2_mem.evaluation.inspection.recording",
    "sam2_mem.evaluation.inspection.watch": "sam2_mem.evaluation.inspection.recording",
    "sam2_mem.evaluation.kept_masks": "sam2_mem.evaluation.packed_masks",
    "sam2_mem.evaluation.passes": "sam2_mem.evaluation.benchmark.measured_pass",
    "sam2_mem.evaluation.peer": "sam2_mem.evaluation.benchmark.reference_benchmark",
    "sam2_mem.evaluation.profile": "sam2_mem.evaluation.benchmark.profile",
    "sam2_mem.evaluation.recipes": "sam2_mem.evaluation.datasets",
    "sam2_mem.evaluation.run": "sam2_mem.evaluation.scoring",
    "sam2_mem.evaluation.suite": "sam2_mem.evaluation.benchmark.suite",
    "sam2_mem.memory.affinity": "sam2_mem.memory.policies.xmem.affinity",
    "sam2_mem.memory.motion": "sam2_mem.memory.policies.samurai.kalman_filter",
    "sam2_mem.memory.prototypes": "sam2_mem.memory.policies.xmem.prototypes",
    "sam2_mem.memory.rows": "sam2_mem.tracking.batching",
    "sam2_mem.memory.storage": "sam2_mem.memory.serialization",
    "sam2_mem.memory.trails": "sam2_mem.memory.policies.sam2long.deferred_masks",
    "sam2_mem.memory.whole_frames": "sam2_mem.memory.frame_bank",
    "sam2_mem.memory.windows": "sam2_mem.memory.reading",
    "sam2_mem.model.constants": "sam2_mem.model.cached_positions",
    "sam2_mem.model.hiera": "sam2_mem.model.trunks.hiera",
    "sam2_mem.model.linear": "sam2_mem.model.acceleration.onednn_linear",
    "sam2_mem.model.optimized": "sam2_mem.model.acceleration.cuda_graphs",
    "sam2_mem.model.sdpa": "sam2_mem.model.acceleration.attention_kernels",
    "sam2_mem.model.transfer": "sam2_mem.model.acceleration.transfer",
    "sam2_mem.tracking.masks": "sam2_mem.tracking.mask_postprocessing",
    "sam2_mem.tracking.revise": "sam2_mem.tracking.frame_loop",
    "sam2_mem.tracking.run_record": "sam2_mem.tracking.run_manifest",
    "sam2_mem.tracking.sense": "sam2_mem.tracking.sensory_update",
    "sam2_mem.training.actors": "sam2_mem.synthetic.moving_objects",
    "sam2_mem.training.checks": "sam2_mem.training.validation_sets",
    "sam2_mem.training.lockstep": "sam2_mem.training.multi_clip_tracker",
    "sam2_mem.training.scenes": "sam2_mem.synthetic.scenes",
    "sam2_mem.training.shapes": "sam2_mem.synthetic.shapes",
    "sam2_mem.training.start": "sam2_mem.training.initialization",
    "sam2_mem.training.synthetic": "sam2_mem.synthetic.generator",
    "sam2_mem.training.synthetic_demo": "sam2_mem.synthetic.demo",
    "sam2_mem.training.synthetic_export": "sam2_mem.synthetic.export",
    "sam2_mem.training.textures": "sam2_mem.synthetic.textures",
    "sam2_mem.training.wardrobe": "sam2_mem.synthetic.appearance",
}

NAMES = {
    "sam2_mem.build_sam:checkpoint_dir": "sam2_mem.config:checkpoint_dir",
    "sam2_mem.build_sam:compose_training": "sam2_mem.config:compose_training",
    "sam2_mem.build_sam:compose_video": "sam2_mem.config:compose_video",
    "sam2_mem.build_sam:config_dir": "sam2_mem.config:config_dir",
    "sam2_mem.build_sam:config_names": "sam2_mem.config:config_names",
    "sam2_mem.build_sam:policy_names": "sam2_mem.config:policy_names",
    "sam2_mem.cli.benchmark:Beside": "sam2_mem.cli.benchmark:Peer",
    "sam2_mem.cli.benchmark:Comparison": "sam2_mem.cli.benchmark:PeerComparison",
    "sam2_mem.cli.benchmark:Report": "sam2_mem.cli.benchmark:BenchmarkReport",
    "sam2_mem.cli.benchmark:filmed": "sam2_mem.cli.benchmark:video_clip",
    "sam2_mem.cli.benchmark:peer": "sam2_mem.cli.benchmark:compare_with_peer",
    "sam2_mem.cli.benchmark:synthetic": "sam2_mem.cli.benchmark:synthetic_clip",
    "sam2_mem.cli.compare:Workshop": "sam2_mem.cli.compare:PredictorBuilder",
    "sam2_mem.cli.distillers:Cost": "sam2_mem.cli.distillers:DistillerCost",
    "sam2_mem.cli.vos:tell": "sam2_mem.cli.vos:print_summary",
    "sam2_mem.cli.vos_datasets:found_tasks": "sam2_mem.cli.vos_datasets:dataset_video_tasks",
    "sam2_mem.cli.vos_datasets:hand_in": "sam2_mem.cli.vos_datasets:write_submission",
    "sam2_mem.cli.vos_datasets:spell_out": "sam2_mem.cli.vos_datasets:apply_dataset_defaults",
    "sam2_mem.evaluation.benchmark:BASELINE": "sam2_mem.evaluation.benchmark.policy_costs:BASELINE",
    "sam2_mem.evaluation.benchmark:Block": "sam2_mem.evaluation.benchmark.policy_costs:Block",
    "sam2_mem.evaluation.benchmark:Census": "sam2_mem.evaluation.benchmark.measured_pass:MemoryCounter",
    "sam2_mem.evaluation.benchmark:Cost": "sam2_mem.evaluation.benchmark.policy_costs:PolicyCost",
    "sam2_mem.evaluation.benchmark:Footage": "sam2_mem.evaluation.benchmark.policy_costs:BenchmarkClip",
    "sam2_mem.evaluation.benchmark:Mark": "sam2_mem.evaluation.benchmark.policy_costs:Mark",
    "sam2_mem.evaluation.benchmark:Setting": "sam2_mem.evaluation.benchmark.policy_costs:Setting",
    "sam2_mem.evaluation.benchmark:Stay": "sam2_mem.evaluation.benchmark.policy_costs:StreamCost",
    "sam2_mem.evaluation.benchmark:WARM_UP": "sam2_mem.evaluation.benchmark.policy_costs:WARM_UP",
    "sam2_mem.evaluation.benchmark:compare": "sam2_mem.evaluation.benchmark.policy_costs:compare",
    "sam2_mem.evaluation.benchmark:cost_table": "sam2_mem.evaluation.benchmark.policy_costs:cost_table",
    "sam2_mem.evaluation.benchmark:resident_bytes": "sam2_mem.evaluation.benchmark.policy_costs:resident_bytes",
    "sam2_mem.evaluation.benchmark:run_block": "sam2_mem.evaluation.benchmark.policy_costs:run_block",
    "sam2_mem.evaluation.benchmark:stay_table": "sam2_mem.evaluation.benchmark.policy_costs:stream_table",
    "sam2_mem.evaluation.benchmark:table": "sam2_mem.evaluation.tables:text_table",
    "sam2_mem.evaluation.benchmark:take_census": "sam2_mem.evaluation.benchmark.policy_costs:count_memory",
    "sam2_mem.evaluation.benchmark:watch": "sam2_mem.evaluation.benchmark.policy_costs:measure_stream",
    "sam2_mem.evaluation.compare_jobs:Contestant": "sam2_mem.evaluation.comparison.jobs:PolicyEntry",
    "sam2_mem.evaluation.compare_report:part_tables": "sam2_mem.evaluation.comparison.report:breakdowns",
    "sam2_mem.evaluation.compare_statistics:Comparison": "sam2_mem.evaluation.comparison.statistics:PairedComparison",
    "sam2_mem.evaluation.compare_statistics:Row": "sam2_mem.evaluation.comparison.statistics:PolicyRow",
    "sam2_mem.evaluation.compare_statistics:make_row": "sam2_mem.evaluation.comparison.statistics:policy_row",
    "sam2_mem.evaluation.compare_statistics:part_means": "sam2_mem.evaluation.comparison.statistics:group_means",
    "sam2_mem.evaluation.compare_statistics:rows": "sam2_mem.evaluation.comparison.statistics:policy_rows",
    "sam2_mem.evaluation.compare_videos:BenchVideo": "sam2_mem.evaluation.comparison.videos:ComparisonVideo",
    "sam2_mem.evaluation.compare_videos:bench_videos": "sam2_mem.evaluation.comparison.videos:comparison_videos",
    "sam2_mem.evaluation.compare_videos:parts_of": "sam2_mem.evaluation.comparison.videos:groups_of_videos",
    "sam2_mem.evaluation.inspection.drawing:stacked": "sam2_mem.evaluation.inspection.sheet:stacked",
    "sam2_mem.evaluation.inspection.record:FrameNote": "sam2_mem.evaluation.inspection.recording:FrameRecord",
    "sam2_mem.evaluation.inspection.record:Segment": "sam2_mem.evaluation.inspection.recording:TimelineSegment",
    "sam2_mem.evaluation.inspection.record:Watched": "sam2_mem.evaluation.inspection.recording:ObjectRecord",
    "sam2_mem.evaluation.inspection.record:frame_notes": "sam2_mem.evaluation.inspection.recording:frame_records",
    "sam2_mem.evaluation.inspection.timeline:WIDEST": "sam2_mem.evaluation.inspection.timeline:MAX_WIDTH",
    "sam2_mem.evaluation.inspection.timeline:captions": "sam2_mem.evaluation.inspection.sheet:captions",
    "sam2_mem.evaluation.inspection.timeline:held_frames": "sam2_mem.evaluation.inspection.sheet:held_frames",
    "sam2_mem.evaluation.inspection.watch:Film": "sam2_mem.evaluation.inspection.recording:RecordedVideo",
    "sam2_mem.evaluation.inspection.watch:watch": "sam2_mem.evaluation.inspection.recording:record_video",
    "sam2_mem.evaluation.inspection:Film": "sam2_mem.evaluation.inspection.recording:RecordedVideo",
    "sam2_mem.evaluation.inspection:FrameNote": "sam2_mem.evaluation.inspection.recording:FrameRecord",
    "sam2_mem.evaluation.inspection:Segment": "sam2_mem.evaluation.inspection.recording:TimelineSegment",
    "sam2_mem.evaluation.inspection:Watched": "sam2_mem.evaluation.inspection.recording:ObjectRecord",
    "sam2_mem.evaluation.inspection:frame_notes": "sam2_mem.evaluation.inspection.recording:frame_records",
    "sam2_mem.evaluation.inspection:watch": "sam2_mem.evaluation.inspection.recording:record_video",
    "sam2_mem.evaluation.kept_masks:KeptMasks": "sam2_mem.evaluation.packed_masks:PackedMasks",
    "sam2_mem.evaluation.passes:Census": "sam2_mem.evaluation.benchmark.measured_pass:MemoryCounter",
    "sam2_mem.evaluation.passes:WatchedSource": "sam2_mem.evaluation.benchmark.measured_pass:PausingSource",
    "sam2_mem.evaluation.peer:Alone": "sam2_mem.evaluation.benchmark.reference_benchmark:ProcessCost",
    "sam2_mem.evaluation.peer:Arm": "sam2_mem.evaluation.benchmark.reference_benchmark:PredictorSpec",
    "sam2_mem.evaluation.peer:LOUDER": "sam2_mem.evaluation.benchmark.reference_benchmark:AMPLIFIED",
    "sam2_mem.evaluation.peer:Pair": "sam2_mem.evaluation.benchmark.reference_benchmark:BlockPair",
    "sam2_mem.evaluation.peer:Race": "sam2_mem.evaluation.benchmark.reference_benchmark:SpeedComparison",
    "sam2_mem.evaluation.peer:SEEN": "sam2_mem.evaluation.benchmark.reference_benchmark:OBJECT_SCORE_BIAS",
    "sam2_mem.evaluation.peer:Spent": "sam2_mem.evaluation.benchmark.reference_benchmark:BlockTime",
    "sam2_mem.evaluation.peer:Stored": "sam2_mem.evaluation.benchmark.reference_benchmark:StoredClip",
    "sam2_mem.evaluation.peer:alone": "sam2_mem.evaluation.benchmark.reference_benchmark:measure_process",
    "sam2_mem.evaluation.peer:lively": "sam2_mem.evaluation.benchmark.reference_benchmark:amplified",
    "sam2_mem.evaluation.peer:race": "sam2_mem.evaluation.benchmark.reference_benchmark:compare_speed",
    "sam2_mem.evaluation.profile:Counter": "sam2_mem.evaluation.benchmark.profile:OperationCounter",
    "sam2_mem.evaluation.profile:Part": "sam2_mem.evaluation.benchmark.profile:PartCost",
    "sam2_mem.evaluation.profile:REST": "sam2_mem.evaluation.benchmark.profile:REMAINDER",
    "sam2_mem.evaluation.profile:Stopwatch": "sam2_mem.evaluation.benchmark.profile:PartTimer",
    "sam2_mem.evaluation.profile:WHOLE": "sam2_mem.evaluation.benchmark.profile:FRAME",
    "sam2_mem.evaluation.recipes:Found": "sam2_mem.evaluation.datasets:DatasetOnDisk",
    "sam2_mem.evaluation.recipes:RECIPES": "sam2_mem.evaluation.datasets:LAYOUTS",
    "sam2_mem.evaluation.recipes:Recipe": "sam2_mem.evaluation.datasets:Layout",
    "sam2_mem.evaluation.results:mean": "sam2_mem.evaluation.metrics:mean",
    "sam2_mem.evaluation.run:Video": "sam2_mem.evaluation.scoring:ScoredVideo",
    "sam2_mem.evaluation.synthetic:Track": "sam2_mem.evaluation.synthetic:BenchmarkTrack",
    "sam2_mem.evaluation.vots:Box": "sam2_mem.evaluation.vots:RegionBox",
    "sam2_mem.memory.motion:Box": "sam2_mem.memory.policies.samurai.kalman_filter:MaskBox",
    "sam2_mem.memory.policies.distilled:Span": "sam2_mem.memory.policies.distilled:Summary",
    "sam2_mem.memory.policies.hq_smem:Likeness": "sam2_mem.memory.policies.hq_smem:Resemblance",
    "sam2_mem.memory.policies.rmem:Stay": "sam2_mem.memory.policies.rmem:FrameStatistics",
    "sam2_mem.memory.policies.sam2long:Pathway": "sam2_mem.memory.policies.sam2long.tree:Pathway",
    "sam2_mem.memory.policies.sam2long:SAM2Long": "sam2_mem.memory.policies.sam2long.policy:SAM2Long",
    "sam2_mem.memory.policies.sam2long:Tree": "sam2_mem.memory.policies.sam2long.tree:Tree",
    "sam2_mem.memory.policies.samurai:Motion": "sam2_mem.memory.policies.samurai.policy:MotionState",
    "sam2_mem.memory.policies.samurai:MotionChoice": "sam2_mem.memory.policies.samurai.policy:MotionSelection",
    "sam2_mem.memory.policies.samurai:Samurai": "sam2_mem.memory.policies.samurai.policy:Samurai",
    "sam2_mem.memory.policies.samurai:SamuraiBank": "sam2_mem.memory.policies.samurai.policy:SamuraiBank",
    "sam2_mem.memory.policies.xmem:Counted": "sam2_mem.memory.policies.xmem.state:WorkingFrame",
    "sam2_mem.memory.policies.xmem:XMem": "sam2_mem.memory.policies.xmem.policy:XMem",
    "sam2_mem.memory.policies.xmem:XMemBank": "sam2_mem.memory.policies.xmem.state:XMemBank",
    "sam2_mem.memory.policy:Bank": "sam2_mem.memory.bank:Bank",
    "sam2_mem.memory.policy:best_pick": "sam2_mem.memory.policy:best_candidate",
    "sam2_mem.memory.policy:drop": "sam2_mem.memory.bank:drop",
    "sam2_mem.memory.policy:map_tensors": "sam2_mem.model.tensor_tree:map_tensors",
    "sam2_mem.memory.policy:put": "sam2_mem.memory.bank:put",
    "sam2_mem.memory.policy:tensors_in": "sam2_mem.model.tensor_tree:tensors_in",
    "sam2_mem.memory.prototypes:LongTerm": "sam2_mem.memory.policies.xmem.prototypes:LongTermMemory",
    "sam2_mem.memory.prototypes:NEWBORN": "sam2_mem.memory.policies.xmem.prototypes:INITIAL_LIFE",
    "sam2_mem.memory.prototypes:potentiated": "sam2_mem.memory.policies.xmem.prototypes:potentiate",
    "sam2_mem.memory.rows:Assembled": "sam2_mem.tracking.batching:BatchedReads",
    "sam2_mem.memory.rows:TimeCodes": "sam2_mem.model.sam2:SAM2",
    "sam2_mem.memory.rows:assemble": "sam2_mem.tracking.batching:batch_reads",
    "sam2_mem.memory.tokens:entry_tensors": "sam2_mem.model.tensor_tree:tensors_in",
    "sam2_mem.memory.trace:EntryNote": "sam2_mem.memory.trace:EntryInfo",
    "sam2_mem.memory.trace:Held": "sam2_mem.memory.trace:EntryTrace",
    "sam2_mem.memory.trace:Moment": "sam2_mem.memory.trace:TraceRecord",
    "sam2_mem.memory.trace:Reading": "sam2_mem.memory.trace:ReadTrace",
    "sam2_mem.memory.trace:Why": "sam2_mem.memory.trace:Reason",
    "sam2_mem.memory.trace:because": "sam2_mem.memory.trace:with_reasons",
    "sam2_mem.memory.trace:moment": "sam2_mem.memory.trace:trace_record",
    "sam2_mem.memory.trace:plain_notes": "sam2_mem.memory.trace:plain_infos",
    "sam2_mem.memory.trace:tell": "sam2_mem.memory.trace:entry_infos",
    "sam2_mem.memory.trails:Shown": "sam2_mem.memory.policies.sam2long.deferred_masks:PublishedMask",
    "sam2_mem.memory.trails:Trails": "sam2_mem.memory.policies.sam2long.deferred_masks:OpenFrames",
    "sam2_mem.memory.trails:grow": "sam2_mem.memory.policies.sam2long.deferred_masks:add_frame",
    "sam2_mem.memory.trails:shown": "sam2_mem.memory.policies.sam2long.deferred_masks:published_mask",
    "sam2_mem.memory.windows:add_prompt": "sam2_mem.memory.bank:add_prompt",
    "sam2_mem.memory.windows:within_reach": "sam2_mem.memory.bank:within_reach",
    "sam2_mem.model.attention_operators:Place": "sam2_mem.model.attention_operators:RotationAt",
    "sam2_mem.model.constants:kept": "sam2_mem.model.cached_positions:cached",
    "sam2_mem.model.distiller.parts:Difference": "sam2_mem.model.distiller.parts:ZeroInitDifference",
    "sam2_mem.model.distiller.parts:Mixing": "sam2_mem.model.distiller.parts:SummaryAttention",
    "sam2_mem.model.distiller.parts:Recurrence": "sam2_mem.model.distiller.parts:FrameGRU",
    "sam2_mem.model.distiller.parts:Score": "sam2_mem.model.distiller.parts:AttentionLogits",
    "sam2_mem.model.distiller.parts:amplified": "sam2_mem.model.distiller.parts:scale_gradient",
    "sam2_mem.model.distiller.windows:Layout": "sam2_mem.model.distiller.windows:WindowLayout",
    "sam2_mem.model.distiller.windows:NOTHING": "sam2_mem.model.distiller.windows:EMPTY",
    "sam2_mem.model.distiller.windows:Place": "sam2_mem.model.distiller.windows:WindowGeometry",
    "sam2_mem.model.distiller.windows:mean_of": "sam2_mem.model.distiller.windows:mean_tokens",
    "sam2_mem.model.distiller.windows:placed": "sam2_mem.model.distiller.windows:tube_geometry",
    "sam2_mem.model.distiller.windows:tube_of": "sam2_mem.model.distiller.windows:join_entries",
    "sam2_mem.model.distiller.windows:weighted": "sam2_mem.model.distiller.windows:weighted_sum",
    "sam2_mem.model.distiller.windows:window_place": "sam2_mem.model.distiller.windows:grid_geometry",
    "sam2_mem.model.linear:LEAST_WORK": "sam2_mem.model.acceleration.onednn_linear:MIN_WORK",
    "sam2_mem.model.linear:plain": "sam2_mem.model.acceleration.onednn_linear:on_plain_cpu",
    "sam2_mem.model.optimized:KEPT": "sam2_mem.model.acceleration.cuda_graphs:NOT_CAST",
    "sam2_mem.model.optimized:Outsiders": "sam2_mem.model.acceleration.cuda_graphs:ExternalTensors",
    "sam2_mem.model.optimized:exchanged": "sam2_mem.model.tensor_tree:map_tensors",
    "sam2_mem.model.optimized:tensors": "sam2_mem.model.tensor_tree:tensors_in",
    "sam2_mem.model.rope:rotation": "sam2_mem.model.rope:rotation_at",
    "sam2_mem.model.transfer:sent": "sam2_mem.model.acceleration.transfer:to_device_async",
    "sam2_mem.tracking.refine:first_look": "sam2_mem.tracking.refine:reference_appearance",
    "sam2_mem.tracking.track:FrameSpans": "sam2_mem.tracking.track:TrackedRanges",
    "sam2_mem.tracking.track:Look": "sam2_mem.tracking.track:ReferenceAppearance",
    "sam2_mem.tracking.track:Output": "sam2_mem.tracking.track:MaskOutput",
    "sam2_mem.tracking.tracker:CPU_BATCH": "sam2_mem.tracking.batching:CPU_BATCH",
    "sam2_mem.tracking.tracker:MASK_HINT_LIMIT": "sam2_mem.tracking.prompt_decoder:MASK_HINT_LIMIT",
    "sam2_mem.tracking.tracker:MOST_MERGES": "sam2_mem.tracking.memory_writer:MERGE_ROUNDS",
    "sam2_mem.training.actors:Actor": "sam2_mem.synthetic.moving_objects:MovingObject",
    "sam2_mem.training.actors:Part": "sam2_mem.synthetic.moving_objects:BodyPart",
    "sam2_mem.training.actors:actor_map": "sam2_mem.synthetic.moving_objects:front_map",
    "sam2_mem.training.clips:ClipWish": "sam2_mem.training.clips:ClipSpec",
    "sam2_mem.training.distillation:taught": "sam2_mem.training.distillation:distillation_loss",
    "sam2_mem.training.folders:FolderVideo": "sam2_mem.training.folders:PaletteFrames",
    "sam2_mem.training.folders:MaskletVideo": "sam2_mem.training.folders:MaskletFrames",
    "sam2_mem.training.folders:ObjectFoldersVideo": "sam2_mem.training.folders:ObjectFolderFrames",
    "sam2_mem.training.folders:Video": "sam2_mem.training.folders:AnnotatedFrames",
    "sam2_mem.training.lockstep:LockstepTracker": "sam2_mem.training.multi_clip_tracker:MultiClipTracker",
    "sam2_mem.training.lockstep:Sighting": "sam2_mem.training.multi_clip_tracker:ObjectPrediction",
    "sam2_mem.training.losses:judge": "sam2_mem.training.losses:frame_loss",
    "sam2_mem.training.pictures:Motion": "sam2_mem.training.pictures:PictureMotion",
    "sam2_mem.training.pictures:Piece": "sam2_mem.training.pictures:Cutout",
    "sam2_mem.training.pictures:cut_piece": "sam2_mem.training.pictures:cut_out",
    "sam2_mem.training.procedural:keep_clip": "sam2_mem.training.rendered:cached_clip",
    "sam2_mem.training.rollout:Judgement": "sam2_mem.training.rollout:SegmentLoss",
    "sam2_mem.training.rollout:Lesson": "sam2_mem.training.rollout:SegmentLoss",
    "sam2_mem.training.rollout:assess": "sam2_mem.training.rollout:segment_loss",
    "sam2_mem.training.scenes:Caster": "sam2_mem.synthetic.scenes:SceneSampler",
    "sam2_mem.training.scenes:Frame": "sam2_mem.synthetic.scenes:SceneFrame",
    "sam2_mem.training.shapes:Box": "sam2_mem.synthetic.shapes:Bounds",
    "sam2_mem.training.start:Start": "sam2_mem.training.initialization:Initialization",
    "sam2_mem.training.start:prepare": "sam2_mem.training.initialization:initialize_weights",
    "sam2_mem.training.synthetic:ClipSpec": "sam2_mem.synthetic.generator:SyntheticSpec",
    "sam2_mem.training.validation:Remembering": "sam2_mem.training.validation:PartialFIFO",
    "sam2_mem.training.wardrobe:Wardrobe": "sam2_mem.synthetic.appearance:AppearanceSampler",
    "sam2_mem.types:Choice": "sam2_mem.types:MaskSelection",
    "sam2_mem.types:Condense": "sam2_mem.types:MergeRequest",
    "sam2_mem.types:POINT_LABELS": "sam2_mem.prompts:POINT_LABELS",
    "sam2_mem.types:Pick": "sam2_mem.types:CandidateId",
    "sam2_mem.types:Prompt": "sam2_mem.prompts:Prompt",
    "sam2_mem.video.prefetch:Ledger": "sam2_mem.video.prefetch:FrameCounter",
}


def current(module: str, name: str) -> tuple[str, str]:
    """The module and the name that ``name`` of ``module`` has now; the same two where nothing has changed."""
    target = NAMES.get(f"{module}:{name}", f"{MODULES.get(module, module)}:{name}")
    new_module, _, new_name = target.partition(":")
    return new_module, new_name


def renamed(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module: names of earlier versions, with a warning."""

    def __getattr__(name: str) -> Any:  # noqa: N807
        if f"{module}:{name}" not in NAMES:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return _resolve(module, name)

    return __getattr__


def renamed_fields(**new_names: str) -> Callable[[type[T]], type[T]]:
    """A class decorator: arguments and attributes of earlier versions (``old="new"``) work on, with a warning."""

    def decorate(cls: Any) -> Any:
        init = cls.__init__

        def new_name(name: str) -> str:
            if name in new_names:
                text = f"{cls.__module__}.{cls.__name__}.{name} is now {new_names[name]}; change the name or the config key"
                warnings.warn(text, FutureWarning, stacklevel=4)
            return new_names.get(name, name)

        @wraps(init)
        def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
            both = [f"{old} and {new}" for old, new in new_names.items() if old in kwargs and new in kwargs]
            if both:
                raise TypeError(f"expected one name of each argument, got {', '.join(both)}; leave out the first")
            init(self, *args, **{new_name(name): value for name, value in kwargs.items()})

        def earlier(name: str) -> property:
            return property(lambda self: getattr(self, new_name(name)))

        cls.__init__ = initialize
        for old in new_names:
            setattr(cls, old, earlier(old))
        return cls

    return decorate


def _resolve(module: str, name: str) -> Any:
    new_module, new_name = current(module, name)
    value = getattr(import_module(new_module), new_name)
    warnings.warn(f"{module}.{name} is now {new_module}.{new_name}; change the import", FutureWarning, stacklevel=3)
    return value


class _MovedModule(ModuleType):
    """Stands where a module was; its names are looked up where they are now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        new_module, new_name = current(self.__name__, name)
        return getattr(import_module(new_module), new_name)


class MovedModules(MetaPathFinder, Loader):
    """Finds the modules of ``MODULES``; last on ``sys.meta_path``, so asked for what does not exist only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        new = MODULES[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}; change the import or the _target_", FutureWarning, stacklevel=2)


def install() -> None:
    """Make the old module names importable; once per process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())

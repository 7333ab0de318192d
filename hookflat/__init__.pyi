"""The face: every public name, once. A plugin needs nothing deeper."""

# --- plugins: hooks, options, errors

from .errors import TrainingFailed as TrainingFailed
from .errors import UserError as UserError
from .hookspecs import hookimpl as hookimpl
from .recipe.options import Decay as Decay
from .recipe.options import Losses as Losses
from .recipe.options import Number as Number
from .recipe.options import Period as Period
from .recipe.options import Radii as Radii
from .recipe.options import Share as Share
from .recipe.nearest import nearest as nearest
from .recipe.options import period_in_epochs as period_in_epochs
from .recipe.recipe import Recipe as Recipe
from .recipe.loading import load_recipe as load_recipe
from .records.quantities import Quantity as Quantity
from .records.radii import by_radius as by_radius
from .records.radii import quantities_by_radius as quantities_by_radius
from .records.radii import radii as radii

# --- plugins: what hooks are given, and give

from .functional.attack_view import AttackView as AttackView
from .functional.attack_view import attack_view as attack_view
from .functional.attacks import Objective as Objective
from .functional.data import Batch as Batch
from .functional.data import Data as Data
from .functional.examples import Examples as Examples
from .functional.data import Images as Images
from .functional.data import StreamedImages as StreamedImages
from .functional.work import Work as Work
from .training.companion import Companion as Companion
from .training.inner_attack import InnerAttack as InnerAttack
from .training.run import Run as Run
from .training.subject import Subject as Subject

# --- training, measuring, reporting

from .training.entry import FinishedRun as FinishedRun
from .training.entry import network_of as network_of
from .training.entry import run as run
from .training.entry import teacher_of as teacher_of
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.opening import Loaded as Loaded
from .evaluation.opening import load as load
from .functional.rescaling import rescale as rescale
from .records.folder import RunFolder as RunFolder
from .records.results import Results as Results
from .reporting.frame import results as results
from .reporting.writing import report as report

# --- attacks

from .functional.choices import Norm as Norm
from .functional.balls import Start as Start
from .functional.threats import Attack as Attack
from .functional.threats import Threat as Threat
from .functional.apgd import apgd as apgd
from .functional.attacks import clean_logits as clean_logits
from .functional.attacks import divergence_from_clean as divergence_from_clean
from .functional.attacks import gradient_at as gradient_at
from .functional.attacks import pgd as pgd
from .functional.attacks import pgd_tau as pgd_tau
from .functional.autoattack import autoattack as autoattack
from .functional.autoattack import autoattacks as autoattacks

# --- measures

from .functional.preactivation import PreActNet as PreActNet
from .functional.robust_error import RobustError as RobustError
from .functional.robust_error import robust_error as robust_error
from .functional.robustness import RobustLoss as RobustLoss
from .functional.robustness import robust_loss as robust_loss
from .functional.flatness import Flatness as Flatness
from .functional.flatness import average_flatness as average_flatness
from .functional.flatness import worst_flatness as worst_flatness
from .functional.curvature import hessian_eigenvalues as hessian_eigenvalues
from .functional.curvature import hessian_trace as hessian_trace
from .functional.curvature import relative_flatness as relative_flatness
from .functional.curvature import sharpness as sharpness
from .functional.adaptive_sharpness import average_sharpness as average_sharpness
from .functional.adaptive_sharpness import worst_sharpness as worst_sharpness
from .functional.along_attack import flatness_along_attack as flatness_along_attack
from .functional.input_space import boundary_thickness as boundary_thickness
from .functional.input_space import input_gradients as input_gradients
from .functional.input_space import local_lipschitz as local_lipschitz
from .functional.input_space import margins as margins
from .functional.spectrum import SpectralDensity as SpectralDensity
from .functional.spectrum import hessian_density as hessian_density
from .functional.weight_norms import distance_from_initialization as distance_from_initialization
from .functional.weight_norms import weight_norm as weight_norm
from .functional.trust import TRUST_FLAGS as TRUST_FLAGS
from .functional.trust import trust as trust
from .functional.landscapes import LANDSCAPE_RADIUS as LANDSCAPE_RADIUS
from .functional.landscapes import Landscape as Landscape
from .functional.landscapes import landscape as landscape
from .functional.landscapes import landscape_2d as landscape_2d

# --- losses, and weights in their neighbourhood

from .functional.losses import cross_entropy as cross_entropy
from .functional.losses import kl_divergence as kl_divergence
from .functional.neighborhood import ball as ball
from .functional.neighborhood import layers as layers
from .functional.neighborhood import moved as moved
from .functional.neighborhood import project as project
from .functional.neighborhood import scaled_to as scaled_to
from .functional.neighborhood import sharpest as sharpest
from .functional.neighborhood import sphere as sphere
from .functional.averaging import MovingAverage as MovingAverage
from .functional.averaging import recalibrated as recalibrated

# --- brackets: what they change they put back

from .functional.brackets import frozen as frozen
from .functional.brackets import in_mode as in_mode
from .functional.brackets import restored as restored
from .functional.brackets import statistics_kept as statistics_kept
from .functional.brackets import twice_differentiable as twice_differentiable

# --- networks and images

from .functional.layers import AuxiliaryHead as AuxiliaryHead
from .functional.layers import Normalized as Normalized
from .functional.layers import RecenteredBatchNorm2d as RecenteredBatchNorm2d
from .functional.layers import auxiliary_logits as auxiliary_logits
from .functional.networks import Activation as Activation
from .functional.networks import Normalization as Normalization
from .functional.networks import Width as Width
from .functional.networks import he_initialised as he_initialised
from .functional.networks import small_image_resnet as small_image_resnet
from .reading.decoding import Resizing as Resizing
from .reading.hub import check_there as check_there
from .reading.hub import classes_in as classes_in
from .reading.images import ImageSet as ImageSet
from .reading.images import load_sets as load_sets
from .reading.labels import class_labels as class_labels
from .reading.streams import streamed as streamed
from .reading.weights import load_foreign as load_foreign
from .reading.weights import read_weights as read_weights

# --- random numbers, figures

from .functional.seeds import normals_like as normals_like
from .functional.seeds import derive_seed as derive_seed
from .functional.seeds import fingerprint as fingerprint
from .functional.canvas import new_figure as new_figure
from .functional.canvas import tidy as tidy

__version__: str

"""What can go wrong, in words a person at the line can act on.

The message of every error is one line that names the input and the fix. Commands
print it and exit with 2; the service takes its fail-safe action and raises an alarm.
"""


class QcError(Exception):
    """The root of every error this project raises on purpose."""


class SettingsError(QcError):
    """The configuration cannot be used; the message gives file, line and key."""


class PictureError(QcError):
    """These bytes are no picture that may be judged."""


class DatasetError(QcError):
    """This folder is no data set that can be taught from or evaluated on."""


class ManifestError(QcError):
    """This release does not say, or does not keep, what it promises."""


class ModelError(QcError):
    """The model cannot be loaded, or gave an answer that is not a score."""


class CertificateError(QcError):
    """A guarantee was asked for that the data cannot support."""


class CameraError(QcError):
    """No usable picture came for a trigger."""


class LineUnavailableError(QcError):
    """The line, or the broker that stands for it, cannot be reached just now."""


class JournalUnavailableError(QcError):
    """What happened to a part cannot be put on record just now."""


class LedgerUnavailableError(QcError):
    """Money cannot be put on record, so none may be spent."""


class LedgerCorruptError(QcError):
    """The chain does not verify; the message names the first bad entry."""


class LedgerForkedError(LedgerCorruptError):
    """The billing server has other entries than this ledger: there are two of one identity."""


class SealError(QcError):
    """A signature is missing, or not that of whom it should be."""


class BudgetExceededError(QcError):
    """The worst case of this request does not fit what is left of the budget."""


class PriceError(QcError):
    """The price book has a hole, an overlap or a row that is not a price."""


class UnpricedError(QcError):
    """No price is known for this request, so it is not made: unknown is never zero."""


class ProviderUnavailableError(QcError):
    """The provider could not be reached or did not answer in time."""


class ProviderRefusedError(QcError):
    """The provider answered, and the answer is no ruling (status, prose, wrong part)."""


class EgressDeniedError(ProviderRefusedError):
    """Nothing may be sent to this provider, or not to this address; nothing was."""


class BillingError(QcError):
    """The billing server cannot take or compute what was asked of it."""


class RulingError(QcError):
    """This ruling cannot be taken: the part is unknown or already settled."""


class AdjustmentError(QcError):
    """This change of the process cannot be made: out of bounds, not there, or not any more."""


class PolicyError(QcError):
    """The policy pack or an attestation cannot be used; the message names file and key."""


class KillSwitchError(QcError):
    """This cannot be stopped, or not be cleared, in this way."""


class AccessError(QcError):
    """Whoever asks may not do this; the message says which role may."""


class SignInError(QcError):
    """This name and secret do not open the panel, or not just now."""


class PanelUnavailableError(QcError):
    """The panel's own file cannot be read or written just now."""

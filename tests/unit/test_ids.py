import pytest

from sluiceway.common.ids import PartitionId


def test_a_partition_is_its_text_and_back() -> None:
    partition = PartitionId("sales", "orders.v1", 3, 17)
    assert str(partition) == "sales/orders.v1@3/17"
    assert PartitionId.parse(str(partition)) == partition


@pytest.mark.parametrize("text", ["", "a/b/1", "a/b@x/1", "a/b@0/-1", "a/b@0/1/2"])
def test_a_text_that_names_no_partition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected pipeline/topic@epoch/partition"):
        PartitionId.parse(text)

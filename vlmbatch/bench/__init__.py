"""What ``vlmbatch bench`` does: makes inputs, runs workloads as ``run`` does, measures them."""

// SPDX-License-Identifier: GPL-2.0-only
/* For a tap with several queues (TUNSETSTEERINGEBPF): all frames go to the first of them. */
#include "bpf.h"

SEC("socket") int midstream_steer(struct __sk_buff *skb __attribute__((unused)))
{
	return 0;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-only
/* The hardworker, where there are several streams: give each packet to the program of its stream, hardworker.bpf.c, which
 * is compiled for its port. Here nothing is decided but where the port lies. What is no TCP packet has something else in
 * that place; a program that gets it lets it pass, as it does with whatever is not its own.
 */
#include "bpf.h"
#include "packet.h"
#include "settings.h"

/* By port, as it lies in the packet: to swap its bytes would be an instruction more for each. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1 << 16);
} ports SEC(".maps");

SEC("xdp") int midstream_streams(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const struct headers *h = data;
	const struct tcphdr *tcp = tcp_header(h);
	const struct iphdr *ip = ip_header(h);

	if ((void *)(&tcp->dest + 1) > end)
		return XDP_PASS;
	if (IP_VERSION_LENGTH(ip) != IP_VERSION_4_NO_OPTIONS) {
		tcp = (const void *)ip + ip->ihl * 4;
		if ((void *)(&tcp->dest + 1) > end)
			return XDP_PASS;
	}
	bpf_tail_call(ctx, &ports, tcp->dest);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-only
/* The hardworker, where there are several streams: give each packet to the program of its stream, hardworker.bpf.c, which
 * is compiled for its port. Here nothing is decided but where the port lies. What is no TCP packet has something else in
 * that place; a program that gets it lets it pass, as it does with whatever is not its own.
 */
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include "bpf.h"
#include "settings.h"

/* By port, in host byte order. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1 << 16);
} ports SEC(".maps");

SEC("xdp") int midstream_streams(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const struct iphdr *ip = data + sizeof(struct ethhdr);
	const struct tcphdr *tcp;

	if ((void *)(ip + 1) > end)
		return XDP_PASS;
	tcp = (const void *)ip + ip->ihl * 4;
	if ((void *)(&tcp->dest + 1) > end)
		return XDP_PASS;
	bpf_tail_call(ctx, &ports, bswap16(tcp->dest));
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

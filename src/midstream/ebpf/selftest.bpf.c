// SPDX-License-Identifier: GPL-2.0-only
/* Does what XDP transmits on this interface really leave it? Some drivers swallow it silently.
 *
 * User space pings a peer. The reply is turned into another request, by XDP_TX; if that request is
 * answered too, what XDP transmits arrives. Runs only until the interface gets its real program.
 */
#include "packet.h"

#define ECHO_REPLY 0
#define ECHO_REQUEST 8
#define SEQUENCE_PINGED bswap16(1)
#define SEQUENCE_REFLECTED bswap16(2)

/* RFC 792, page 14. (linux/icmp.h needs a C library.) */
struct ping {
	struct ethhdr eth;
	struct iphdr ip;
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 identifier;
	__be16 sequence;
} __attribute__((packed));

/* The identifier of this test's pings, in network byte order. */
const volatile struct {
	__be16 identifier;
} settings SEC(".rodata.settings");

SEC("xdp") int midstream_selftest(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	unsigned char mac[ETH_ALEN];
	struct ping *p = data;
	__be32 ip;

	if ((void *)(p + 1) > end || ETHER_TYPE(&p->eth) != bswap16(ETH_P_IP) ||
	    IP_VERSION_LENGTH(&p->ip) != IP_VERSION_4_NO_OPTIONS || p->ip.protocol != IPPROTO_ICMP ||
	    p->type != ECHO_REPLY || p->identifier != settings.identifier ||
	    p->sequence != SEQUENCE_PINGED)
		return XDP_PASS;

	__builtin_memcpy(mac, p->eth.h_dest, ETH_ALEN);
	__builtin_memcpy(p->eth.h_dest, p->eth.h_source, ETH_ALEN);
	__builtin_memcpy(p->eth.h_source, mac, ETH_ALEN);
	ip = p->ip.daddr; /* exchanged addresses leave the checksum as it is */
	p->ip.daddr = p->ip.saddr;
	p->ip.saddr = ip;
	/* Type and sequence number: each pair is one value of 32 bits to the checksum. */
	p->checksum = changed_checksum(p->checksum, checksum_change(ECHO_REPLY, ECHO_REQUEST));
	p->checksum = changed_checksum(p->checksum, checksum_change(SEQUENCE_PINGED, SEQUENCE_REFLECTED));
	p->type = ECHO_REQUEST;
	p->sequence = SEQUENCE_REFLECTED;
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";

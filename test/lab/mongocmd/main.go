// Command mongocmd runs one database command and prints the answer as JSON: the part of mongosh a lab needs.
//
//	mongocmd mongodb://127.0.0.1/st2 '{"ping": 1}'
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"
	"go.mongodb.org/mongo-driver/x/mongo/driver/connstring"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: mongocmd URI COMMAND...")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "mongocmd:", err)
		os.Exit(1)
	}
}

// run ends at the first command that fails; the error shows the server's code.
func run(ctx context.Context, uri string, commands []string) error {
	cs, err := connstring.ParseAndValidate(uri)
	if err != nil {
		return err
	}
	if cs.Database == "" {
		cs.Database = "admin"
	}
	client, err := mongo.Connect(ctx, options.Client().ApplyURI(uri).SetServerSelectionTimeout(10*time.Second))
	if err != nil {
		return err
	}
	defer client.Disconnect(context.WithoutCancel(ctx))
	for _, command := range commands {
		var d bson.D
		if err := bson.UnmarshalExtJSON([]byte(command), false, &d); err != nil {
			return err
		}
		answer, err := client.Database(cs.Database).RunCommand(ctx, d).Raw()
		if refused := (mongo.CommandError{}); errors.As(err, &refused) {
			return fmt.Errorf("code %d: %w", refused.Code, err)
		} else if err != nil {
			return err
		}
		fmt.Println(answer)
	}
	return nil
}
